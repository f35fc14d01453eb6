"""What a machine is given to contextualize itself: user_data and what goes into it."""
