"""Process containers: the driver of bubblewrap and Singularity/Apptainer, and their parts."""
