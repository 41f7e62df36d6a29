"""Loading models by name, and registering their classes with transformers."""
