"""How much one neuron says about another, which of two that say the same may go, and how the other takes over."""
