"""What is a network shown, to see what happens in it? Its user's inputs, or some made up."""
