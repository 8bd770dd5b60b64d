"""From photos, data sets or nothing at all to records: run ``python -m data_prep --help``."""
