"""Images, lists, pairs and batches."""
