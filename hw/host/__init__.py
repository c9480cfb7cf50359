"""What machine this is: versions, topology, memory and copy rates, and the pre-flight check."""
