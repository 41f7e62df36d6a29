"""Speaker verification with HAM-Softmax for Hugging Face."""
