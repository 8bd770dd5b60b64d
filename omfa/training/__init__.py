"""What training needs around the method: examples, modules, checkpoints, guards."""
