"""Knowledge data: pictures captioned anew, and texts that pass the same filters."""
