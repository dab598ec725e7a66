"""Whether two images show one class: the classes of training and test are others."""
