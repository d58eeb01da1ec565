"""What people run: the whole job, its report, the demo and the doctor."""
