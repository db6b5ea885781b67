"""What goes back to a model: plain data, encodable text, bounded sizes."""
