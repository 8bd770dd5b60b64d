"""Where a body would stand in a shop picture: the networks' training, and the stage that uses them."""
