"""Configuration: files and the table of options become frozen Settings and Machinetypes."""
