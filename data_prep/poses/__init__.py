"""From photos and parameter files to posed bodies and pose maps."""
