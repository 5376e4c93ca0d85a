"""What an operator sees of a running Pannier: metrics, health, figures, over HTTP beside the data path."""
