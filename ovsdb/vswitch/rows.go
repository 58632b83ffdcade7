// Package vswitch holds the rows of Open vSwitch's database as far as Heliotrope reads or
// writes them. The tags name columns of vswitch.ovsschema(5); a column that is not here is
// never asked for, so that a newer or older Open vSwitch is no trouble.
package vswitch

// OpenvSwitch is the one row of table Open_vSwitch.
type OpenvSwitch struct {
	UUID        string            `ovsdb:"_uuid"`
	Bridges     []string          `ovsdb:"bridges"`
	CurCfg      int               `ovsdb:"cur_cfg"`  // what ovs-vswitchd has carried out
	NextCfg     int               `ovsdb:"next_cfg"` // what clients have asked for
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

// Bridge is a row of table Bridge.
type Bridge struct {
	UUID         string            `ovsdb:"_uuid"`
	Name         string            `ovsdb:"name"`
	DatapathType string            `ovsdb:"datapath_type"`
	FailMode     *string           `ovsdb:"fail_mode"`
	Protocols    []string          `ovsdb:"protocols"`
	OtherConfig  map[string]string `ovsdb:"other_config"`
	ExternalIDs  map[string]string `ovsdb:"external_ids"`
	Ports        []string          `ovsdb:"ports"`
}

// Port is a row of table Port: one interface, or several in a bond.
type Port struct {
	UUID       string   `ovsdb:"_uuid"`
	Name       string   `ovsdb:"name"`
	Interfaces []string `ovsdb:"interfaces"`
}

// Interface is a row of table Interface. Ofport is nil until ovs-vswitchd has looked at
// the row, and -1 where it could not make the port; Error then says why.
type Interface struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	Type        string            `ovsdb:"type"`
	Options     map[string]string `ovsdb:"options"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
	Ofport      *int              `ovsdb:"ofport"`
	Error       *string           `ovsdb:"error"`
	LinkState   *string           `ovsdb:"link_state"`
	MACInUse    *string           `ovsdb:"mac_in_use"`
	Ifindex     *int              `ovsdb:"ifindex"`
	BFD         map[string]string `ovsdb:"bfd"`
	BFDStatus   map[string]string `ovsdb:"bfd_status"`
	Statistics  map[string]int    `ovsdb:"statistics"` // grows every 5 s: never monitored
}
