"""From a field camera's packets to packets for viewers, stage by stage."""
