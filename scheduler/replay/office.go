package replay

// OfficeHours is how many of those who work in an office are there, by local hour: the
// weekday occupancy of offices in the U.S. Department of Energy's commercial reference
// buildings (schedule BLDG_OCC_SCH; NREL/TP-5500-46861, 2011), after ASHRAE 90.1.
var OfficeHours = [24]float64{0, 0, 0, 0, 0, 0, 0.1, 0.2, 0.95, 0.95, 0.95, 0.95, 0.5, 0.95, 0.95, 0.95, 0.95, 0.3, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05}
