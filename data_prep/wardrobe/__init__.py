"""The synthetic wardrobe: dressed people with the truth known exactly."""
