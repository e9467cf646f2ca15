package groupmodel

// table is a hash table from hashes to nodes, with open addressing. The hashes are
// spread already, and nothing is ever removed.
type table struct {
	hashes []uint64
	nodes  []uint32 // node + 1, 0 for none
	used   int
}

// newTable makes a table; size is a power of two.
func newTable(size int) table {
	return table{hashes: make([]uint64, size), nodes: make([]uint32, size)}
}

// put gives a hash a node if it has none, and returns the one it has.
func (t *table) put(hash uint64, node uint32) uint32 {
	if 4*t.used > 3*len(t.nodes) {
		larger := newTable(2 * len(t.nodes))
		for i, n := range t.nodes {
			if n != 0 {
				larger.put(t.hashes[i], n-1)
			}
		}
		*t = larger
	}
	mask := uint64(len(t.nodes) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		switch {
		case t.nodes[i] == 0:
			t.hashes[i], t.nodes[i] = hash, node+1
			t.used++
			return node
		case t.hashes[i] == hash:
			return t.nodes[i] - 1
		}
	}
}
