"""What layers are and do: converters between the rungs of the bias ladder, and measurements."""
