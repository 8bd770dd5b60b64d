"""From photos, data sets or nothing at all to records: run ``python -m data_prep --help``."""

import omfa  # noqa: F401  Ctrl-C is answered in a line from here on
