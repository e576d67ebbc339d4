"""A real robot's interface, without ROS: its configuration, its observations, its commands."""
