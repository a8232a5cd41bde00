"""From a framework's model to rows: where hidden states are and what the head is."""
