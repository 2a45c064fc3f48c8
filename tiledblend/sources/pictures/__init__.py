"""PNG, JPEG and WebP pictures, decoded whole: `header` says what one holds before anything is decoded."""
