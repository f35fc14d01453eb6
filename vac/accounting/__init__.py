"""What is reported of machines that have ended: APEL records."""
