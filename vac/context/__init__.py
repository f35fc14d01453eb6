"""Contexts of machines: user_data and its parts, and images."""
