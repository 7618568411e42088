"""Backend-specific parts of training; another backend is another file here."""
