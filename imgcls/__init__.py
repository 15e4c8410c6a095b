"Reproducible image-classification reports, from params files to a published book."
