"""What the pages say, without Streamlit: pure functions over typed rows, tested with plain values."""
