"""The REST API: routes by noun, thin; what they do is in the modules above."""
