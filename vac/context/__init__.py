"""What a machine gets to contextualize itself: user_data and its parts, and images."""
