"""Images to a store of decoded pixels, and the store to seeded, augmented batches."""
