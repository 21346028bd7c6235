"""placeholder"""
from typing import Any
Queries = Any
