"Reproducible image-classification reports, from params files to a published book."
import warnings

# Of other libraries, on import; a reader can do nothing about them.
for _text in (r'`torch\.jit\.script` is deprecated', 'IProgress not found'): warnings.filterwarnings('ignore', message=_text)
