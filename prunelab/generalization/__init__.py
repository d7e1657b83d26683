"""What pruning for more than one kind of text needs: sensitivity of units to the text, modules, their sparsity."""
