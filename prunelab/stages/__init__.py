"""The seam: each stage is one function (identity, inputs, folder, context) -> result."""
