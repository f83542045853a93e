"""Handing a run over: uploaded to the Hugging Face Hub after training or by hand, and fetched to be used."""
