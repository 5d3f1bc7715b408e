"""ViLBERT: image regions and words in two streams with co-attention."""
