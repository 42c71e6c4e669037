"""Images from hostile places: bytes of data URLs and fetched files, decoded in processes of their own."""
