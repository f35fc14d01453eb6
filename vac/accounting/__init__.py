"""Reports about ended machines: APEL records."""
