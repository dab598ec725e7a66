"""Which class an image shows: the classes of training and test are the same."""
