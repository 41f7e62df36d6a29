"""Loading of models by name, and registration of their classes with transformers."""
