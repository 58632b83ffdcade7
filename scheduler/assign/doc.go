// Package assign puts units at sites for the least money: a quadratic assignment with room.
//
// It knows numbers only. Package scheduler makes a Field of what there is and what it costs.
//
// Dual is the field's linear relaxation, in which an edge has a variable for each pair of
// sites, seen from its dual: messages along edges, sent so that the bound never falls (TRW-S,
// after Kolmogorov), and a rent for each site's room, which rises where more is asked for
// than there is. Any messages and any rent give a lower bound, so that what Search returns
// as one is certain, however bad the search was.
//
// The rent is looked for among lumps of units first, which are a tenth as many.
//
// The search starts from the placement of now and from what the messages say, and anneals:
// single units, units to their neighbours, two for each other where a site is full, clusters, at
// the site that is cheapest for them, clusters for each other, and clusters that send others on
// to a third site. In a large field most of it is done with the rent as a price of room, since
// then a site that is full is no better than another but for those that gain most there. Polish
// goes on with the room of bins, hosts, instead of sites. A table has what each unit would cost
// at each site, all others staying where they are: a move is weighed in O(1), a cluster of m at all sites in
// O(m × sites), and a move, once taken, costs O(degree × sites).
package assign
