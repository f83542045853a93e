"""Networks: decoders with memory, and the layers they are made of."""
