"""Files of orders, a row each, made once each, side by side on all devices."""
