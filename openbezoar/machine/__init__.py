"""What the machine has and what it says no to: devices, disks, streams, files that people bring."""
