"""Content-addressed results on disk: one folder per key, written to a temporary name, finished by rename."""
