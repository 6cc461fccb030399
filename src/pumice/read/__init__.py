"""Documents to data: files in, a record for each page, picture and video out."""
