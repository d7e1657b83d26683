"""Dense linear algebra of the methods: damping, Cholesky factors and inverses, OBS updates, masked least squares."""
