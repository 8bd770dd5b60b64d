"""Published try-on and try-off systems, written anew so that their weights load; none knows another, or the canvas."""
